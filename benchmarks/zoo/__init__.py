"""How the tiny zoo, whose models `overtone demo --tiny` serves, is trained and measured."""
