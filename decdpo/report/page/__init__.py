"""One page of HTML that shows runs in a browser, with everything it needs inside."""
