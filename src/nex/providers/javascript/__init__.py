"""JavaScript and TypeScript functions in Deno workers."""
