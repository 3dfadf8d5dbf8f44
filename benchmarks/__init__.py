"""What Modelyard costs, as ratios to peers and limits measured in the same run. README.md says how to read it."""
