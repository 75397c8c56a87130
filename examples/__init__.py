"""Real problems with known answers; each has its components, a problem and a closed form to check against."""
