"""A cold plate: flow and heat that need each other, and where the channels should be."""
