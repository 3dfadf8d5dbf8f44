"""What Modelyard is measured against: each a program of its own, as small as its kind can be."""
