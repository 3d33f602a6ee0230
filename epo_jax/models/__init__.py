"""Language models: the decoder, its configuration and its weights."""
