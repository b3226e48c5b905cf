"""The last layer of every model: it gathers the prompt and recalls the answer."""
