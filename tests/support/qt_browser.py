"""A page of Qt's WebEngine (Chromium) without a window, driven through its DevTools protocol.

It runs in the environment of `make test-pages`, and prints "DevTools listening on ws://..." as chromium does.
"""

import os
import socket
import sys

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ |= {
    "QT_QPA_PLATFORM": "offscreen",
    "QTWEBENGINE_REMOTE_DEBUGGING": f"127.0.0.1:{port}",
    "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu",
}

from PyQt6.QtCore import QUrl
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

application = QApplication(sys.argv)
view = QWebEngineView()
view.resize(1400, 900)
view.setUrl(QUrl("about:blank"))
view.show()
sys.exit(application.exec())
