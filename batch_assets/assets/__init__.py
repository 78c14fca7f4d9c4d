"""The graph, one module an asset: read, call a layer below, say what came of it."""
