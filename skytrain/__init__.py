"""skytrain: supervised fine-tuning of reasoning models on one node, from chat data to a Hugging Face checkpoint."""

__version__ = "0.1.0"
