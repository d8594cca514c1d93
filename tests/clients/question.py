"""The question that the tests of all clients ask, and the server that they ask."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

URL = os.environ["HEADLIGHT_CLIENTS_URL"]
MODEL = "smollm2-135m-instruct"
ASKED = "What is the weather in Seoul, in celsius?"


class Weather(BaseModel):
    """The weather in a city."""

    model_config = ConfigDict(extra="forbid")  # Or the model may go on with properties of its own.

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]
