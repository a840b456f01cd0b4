"""From the model to the table that the data plane reads."""
