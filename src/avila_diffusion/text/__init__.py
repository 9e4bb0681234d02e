"""From strings to conditioning: the CLIP tokenizer, the prompt grammar and the conditioner.

The tokenizer and the grammar need no torch; the conditioner runs the text towers.
"""
