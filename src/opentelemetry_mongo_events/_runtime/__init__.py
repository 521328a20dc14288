"""What a library in a foreign process needs: it never raises, blocks or leaks."""
