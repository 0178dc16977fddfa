"""How diffusers models meet the cache, and the models that ship with longvid."""
