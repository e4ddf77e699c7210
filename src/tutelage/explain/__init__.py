"""What a network sees: previews of its inputs, receptive fields, a summary of its layers."""
