"""ComfyUI bridge: the only package that knows ComfyUI's insides; core modules in, native objects out."""
