"""Conversations on disk: EPO's ShareGPT files, their readers and writers, and what is made from them."""
