"""What a fleet tells others and hears from them. It knows no hub: whoever does plays the seams."""
