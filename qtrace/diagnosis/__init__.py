"""From "it differs" to a named fault: passes with forced boundaries, then grafts, then words."""
