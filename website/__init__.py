"""The documentation site: pages made from the code and its data, and how Markdown of the repository becomes a site's."""
