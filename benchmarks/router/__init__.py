"""The router on what people wrote: CLINC150, Banking77 and other labelled text, beside other text classifiers."""
