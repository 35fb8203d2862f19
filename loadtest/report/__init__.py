"""What a load test leaves behind: a versioned JSON, Markdown, a page with charts; and how two of them compare."""
