from riprap.commands._doctor import examine
from riprap.commands._models import load_model

__all__ = ["examine", "load_model"]
