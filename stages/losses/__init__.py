"""The mathematics: divergences and layer matching, pure functions on tensors."""
