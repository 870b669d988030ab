"""Output for people: streams, progress, tables, and quoted text of models and data sets."""
