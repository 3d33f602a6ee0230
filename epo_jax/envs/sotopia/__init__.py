"""SOTOPIA: social dialogues between two characters with private goals."""
