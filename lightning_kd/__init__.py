"""Knowledge distillation and nested adapters for pre-trained models, on PyTorch Lightning.

Importing this package costs nothing; take what you need from its parts: ``lightning_kd.methods``,
``lightning_kd.data``, ``lightning_kd.callbacks``, ``lightning_kd.functional``.
"""

__version__ = "0.1.0"
