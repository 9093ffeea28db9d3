"""Loading, replacing and unloading experts while the server runs."""
