"""What can sit in a seat."""
