"""What each container does: six stages, and the method they share."""
