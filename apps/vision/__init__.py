"""Vision: image classification with VRWKV-7. Importing it registers the models with timm."""

from apps.vision import registry as registry
from apps.vision.model import VRWKV7, build_vision_model
from apps.vision.pipeline import Prediction, VisionPipeline

__all__ = ["VRWKV7", "Prediction", "VisionPipeline", "build_vision_model"]
