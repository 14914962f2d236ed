"""What layers say, shown: in a terminal and as a page."""
