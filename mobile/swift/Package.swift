// swift-tools-version: 5.9
import PackageDescription

// `xcframework.sh` makes LetheFFIC.xcframework, on a Mac.
let package = Package(
    name: "Lethe",
    platforms: [.iOS(.v15), .macOS(.v12)],
    products: [.library(name: "Lethe", targets: ["Lethe"])],
    targets: [
        .binaryTarget(name: "LetheFFIC", path: "LetheFFIC.xcframework"),
        .target(name: "LetheFFI", dependencies: ["LetheFFIC"], exclude: ["LetheFFIC.modulemap", "LetheFFIC.h"]),
        .target(name: "Lethe", dependencies: ["LetheFFI"]),
    ]
)
