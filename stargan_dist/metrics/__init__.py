"""What a trained generator is measured by."""
