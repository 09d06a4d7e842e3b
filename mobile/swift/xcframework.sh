#!/usr/bin/env bash
# Makes LetheFFIC.xcframework for iOS, its simulator and macOS. It needs a Mac with Xcode and the Rust targets below. It
# has never been run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
headers=$(mktemp -d)
cp "$here"/Sources/LetheFFI/*.h "$headers/"
cp "$here"/Sources/LetheFFI/*.modulemap "$headers/module.modulemap"
library() { # TARGET
    cargo rustc --release --manifest-path "$root/mobile/ffi/Cargo.toml" --target "$1" --crate-type staticlib
    echo "${CARGO_TARGET_DIR:-$root/target}/$1/release/liblethe_ffi.a"
}
device=$(library aarch64-apple-ios | tail -1)
simulator=$(library aarch64-apple-ios-sim | tail -1)
mac=$(library aarch64-apple-darwin | tail -1)
rm -rf "$here/LetheFFIC.xcframework"
xcodebuild -create-xcframework \
    -library "$device" -headers "$headers" \
    -library "$simulator" -headers "$headers" \
    -library "$mac" -headers "$headers" \
    -output "$here/LetheFFIC.xcframework"
