from tqdm import tqdm as progress_bar  # noqa: F401
