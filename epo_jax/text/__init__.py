"""Tokenizers, chat segments and ragged batches of tokens."""
