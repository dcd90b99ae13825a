"""Several ranks: how they start and stop, what they exchange, and the layers that are split over them."""
