"""What runs beside the data: examples, training one silo or many stacked, personal state."""
