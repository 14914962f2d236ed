"""What the three training stages share: optimizer, loop, launch."""
