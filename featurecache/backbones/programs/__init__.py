"""Programs that ``torch.export.save`` wrote, read without running or unpickling anything of the file."""
