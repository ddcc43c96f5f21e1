"""What a person sees: tables, curves, pictures."""
