# The real one is of OpenEmbedded-Core.
