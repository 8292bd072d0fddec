"""Two small images inside the program, to see whether a machine still makes the features that it should.

A JPEG that is stored turned and with halved colour, and a PNG with partial transparency: between them they touch the
decoder, orientation, colour conversion, the background rule, resizing and the network.
"""

from __future__ import annotations

from base64 import b64decode

_JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/4QAiRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAD/2wBDAAUDBAQEAwUEBAQFBQUGBwwIBwcHBw"
    "8LCwkMEQ8SEhEPERETFhwXExQaFRERGCEYGh0dHx8fExciJCIeJBweHx7/2wBDAQUFBQcGBw4ICA4eFBEUHh4eHh4eHh4eHh4eHh4eHh4eHh4e"
    "Hh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh7/wAARCABIAGADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8"
    "QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdI"
    "SUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+"
    "Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJB"
    "UQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhY"
    "aHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwD6"
    "WluFx1FY+p3SbTyK4mTxgh/5aD86zr3xUjg/vB+dYZjw/iKlNpI+qhaJp63cKS3NcZq86880zU9fV8/P+tcrq+srg/NXxmU8J4qlj1Nx6nrZfi"
    "405psmuZlMnWuh8KTKJV5715hda2ok+9+tbfhjXlEq/P8ArX9FYilJZT7PrY+1qZrTq0ORPU+lPDdwvkDkdKPEEqiFsGuG8OeIl8lfn7Va1jXV"
    "eI/P2r+UsyyKvHM3Utpc/G+Kspq1Iymloch4ucF3rz/UW+Y10/iW/Ds3NcPq91tBOa/deEsxhhacYyZ+EyoOGLsyCeQVTkkGetZl5qYUn5qzZN"
    "WXP3q/YsHntBwV2fpWWfw0ehtrF3/eaoJdZuB1Y111x4VZQTs/Sua17R2tkY7cV+e4fi7La8uXQ+sWYxlojIuNbk5y9YWqa0xU/PWX4humtnYZ"
    "xXLXWoux5avpqVfAThzxSCpXklzJmvdarI0hwxrY8O6lN5i4JrjrbdMw+tdp4U09nkXivIx+cUUnDoc2Ez2VGsud6Hp/hzU5/LXk1uTXk8idTV"
    "bwroxaNPlrsYPDxZPuV+a53jcGouVtT7DF8RYLFYV09LnnGqiZ8nBrkddMqoeDXtt74Yyp+T9K4zxR4c2Rt8n6V+bR4hX1jliz8er8PVcRi3Up"
    "rRng2sTyq7dawZ7yXPU133iTR9jt8tclc6aQx+Wvu8FnVRwVpH2+X8PVo00mj7pvbe32HgV5742tYzE+0Ct6bWtwPzVh6vKLpSM5zX49lssVRq"
    "Jts8aeDqYf3mfPfjqylMz7VNcUlhcvJgqa+g9Y8OLduTszn2qhb+Cl358r9K/Ycoz2Uqaptnl4niCFJcjPMdD0mXK5Q16P4UsPKZdy10Vl4UWJ"
    "QfL/AEqzJYiyGQMYr6NYCtjFdHztbGvEP3TtPC7wRooOBXcWFxasoGVrwl/EBtGwHxitPSfGLFgPM/WvAzbg/FVKbYYf29GXPJ6Ht0wtnQ4xXE"
    "+MYoPLbGKqWXiUyx/f/WsLxTrJeJvmr81o8F4r62fb5NxdhYSVOW5554sii8x+lcRdxx7j0rd8T35aRua5ky7jkmv1/K+DK6oq5+sYLN8PUpqS"
    "PdxK/qaeJwv3jSGPFZOrz+SpIOMV8Dhso9rLlSIzjh7moNpG0l9br94irMGp2g7rXkus+IWgYjf+tZC+LnB/1h/Ovv8AJ+Cql1UP54zjIaixLP"
    "ev7UtSvBWsPW7uOVSEIryu18Wu5x5h/Ouh0jUzeMoLZzX6RRwqwFL3ug8JlbpWbK2r2s8shKZqPS7G6WQE7q9B0jRlu1BK5zW3H4ZWNc+X+lfN"
    "5rxZRpRcD3lhliIezRy+lJMsYBzTNXt5ZUI5rrTpgi4205dMEvG2vhIcUUfb8x5kuCa1Gf1g8Y1jRZ5XPymsY+HrrccK1fQg8MJLz5f6U9fB8Z"
    "/5ZD8q/QsDxvRhTSO6GfPAL2bexgO3Fc14obEbUUV8HlMV7dH9VY+KeHkeQeKZWMzAGuayfU0UV+95XCKw6sfz1niSxTJrSZ0lHJxmvR/A0peV"
    "MmiivMz/AEos8lpch7/4KhDxJkdq7Ga2URdO1FFfzTxFUl7V6m+Uq+IRgX8YD0/TowWHFFFfGRqS59z9Ux9KH9nt26HTafbKVBIq2UReiiiivp"
    "sJUk1ufzBn7/2mSP/Z"
)

_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAABgAAAAUCAYAAACXtf2DAAACHUlEQVR42m2V4ZHdQAiDv8y4AJVACS4hJaeULYESVEJ+ALvrXDyz957fYYQkwL"
    "/+8AIChBEm6ghQQiQo+78CgywcIl+x3voEiGXeZSKN0gh46Mt9zh0A0v3NFEgD7TB3jffV8Y+jctgTVU9p/kgoAi4GB1fIw71+lVSfjfOs6Fzu"
    "UgyyK7GAUJ1WDIRd8QoTTUEFrwKog+HJFxV1WrepRhCBQvBesuw6XICZvFF6hSo+CEbMZwWFbAjKnBIhkFwAEeDAMRhGTrCLub1lESNpA6BiMN"
    "6hu6fGihNCAAmeqnAB5Ojcp216wseDXcHY7JLAGx0Iw28fI8iKUTfOhDrxAGgArDbtar9lyFV4AkeD4ErshKx7Cym6G4bB2wzG6K1RF4mNcUmz"
    "zyXFMs7qPiILKHR5sLXWNdH9a7et1WZe86HOWbQOnq0d6zLZOsnUD8Um5cv8KV6r67ORfbrXzTzPpD0znlspawNZwuFtYA2bdlufSqtrUqrnm6"
    "uBx7LmBkO2PB72bWzQTZAjifY66KFlloSvofzMQSVUyyra3u9SsyC/m836rkZd++9pRBm1JCK34SZaZwHhveywhXt4SiLXPf4uO3yG3Gp6b7Vo"
    "GEVC2GUu7u5RJ26WbYiUhPwx6OHaIvN1ZNGq5G96Tzp7sR4JPZaqX06RvUY2wK3nkWdPh13y8H0dFGOfBYg1ILtN/c+Q/byuUb8W3//fhD9T/A"
    "XcYVEtyp1N1QAAAABJRU5ErkJggg=="
)

REFERENCE_IMAGES = (b64decode(_JPEG), b64decode(_PNG))
