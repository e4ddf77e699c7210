"""From streams of samples to batches on the device."""
