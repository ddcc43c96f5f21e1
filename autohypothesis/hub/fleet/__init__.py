"""A fleet's side of a hub: plays the seams that the fleet has for claims, telling and hearing."""
