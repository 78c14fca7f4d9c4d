"""Tools for developers: benchmarks, screenshots, the reference pages, and servers for tests."""
