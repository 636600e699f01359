"""The codec: frames of weights as fewer bytes and back, and the sums that recipes are made of."""
