// swift-tools-version: 6.2
import PackageDescription

// Debian's multiarch triple: where libdpdk-dev puts the architecture's own headers.
#if arch(x86_64)
let multiarch = "x86_64-linux-gnu"
#elseif arch(arm64)
let multiarch = "aarch64-linux-gnu"
#endif

/// SwiftPM cannot parse Debian's libdpdk.pc, so its flags are spelled out here.
let dpdkFlags = [
  "-I/usr/include/dpdk", "-I/usr/include/\(multiarch)/dpdk", "-include", "rte_config.h",
]
let dpdkSwiftFlags = dpdkFlags.flatMap { ["-Xcc", $0] }

/// What every Swift target of ours is built with.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("MemberImportVisibility"),
  .enableUpcomingFeature("InternalImportsByDefault"),
]
/// @_noLocks is checked in debug builds too, and there it must see the bodies of generic code.
let hot: [SwiftSetting] = strict + [.unsafeFlags(["-wmo", "-num-threads", "1"], .when(configuration: .debug))]
let hotOptimized: [SwiftSetting] = hot + [.unsafeFlags(["-O"], .when(configuration: .debug))]
let tests: [SwiftSetting] = [.treatAllWarnings(as: .error)]
let dpdk: [SwiftSetting] = strict + [.unsafeFlags(dpdkSwiftFlags)]
let optimized: [SwiftSetting] =
  strict + [.unsafeFlags(["-O", "-wmo", "-num-threads", "1"], .when(configuration: .debug))]
/// The preload shim lives in foreign processes: no Swift runtime, no allocation behind our back.
let embedded: [SwiftSetting] =
  strict + [
    .enableExperimentalFeature("Embedded"),
    // Small; what programs call most is marked @_optimize(speed).
    .unsafeFlags(["-wmo", "-Osize"]),
    .unsafeFlags(["-Xfrontend", "-function-sections"]),
    // (No hash of each module in the library.)
    .unsafeFlags(["-Xfrontend", "-disable-incremental-llvm-codegen"]),
    // (No frame pointers, as in the trampoline and in libc: a register more.)
    .unsafeFlags(["-Xcc", "-Xclang", "-Xcc", "-mframe-pointer=none"]),
    .define("MACHNET_EMBEDDED"),
  ]
let cStrict: [CSetting] = [
  .unsafeFlags(["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"])
]
// (No floating point, so that functions of many arguments need not save its registers: a tenth of their code.)
let trampoline: [CSetting] =
  cStrict + [
    .unsafeFlags(["-fvisibility=hidden", "-ffunction-sections", "-mgeneral-regs-only", "-Xclang", "-mframe-pointer=none"])
  ]

let package = Package(
  name: "machnet",
  products: [
    .executable(name: "machnetd", targets: ["machnetd"]),
    .executable(name: "machnet", targets: ["machnet"]),
    .executable(name: "machnet-fabric", targets: ["machnet-fabric"]),
    .library(name: "machnet-preload", type: .dynamic, targets: ["MachnetPreload"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
    .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.80.0"),
    .package(url: "https://github.com/jpsim/Yams", from: "6.0.0"),
  ],
  targets: [
    // Compat: where Swift meets C.
    .target(name: "CMachnetABI", path: "Compat/CMachnetABI", cSettings: cStrict),
    .target(name: "CLinux", path: "Compat/CLinux", cSettings: cStrict),
    .target(name: "CNuma", path: "Compat/CNuma", cSettings: cStrict, linkerSettings: [.linkedLibrary("numa")]),
    .target(name: "CElf", path: "Compat/CElf", cSettings: cStrict, linkerSettings: [.linkedLibrary("elf")]),
    .target(
      name: "CDPDK", path: "Compat/CDPDK", cSettings: cStrict + [.unsafeFlags(dpdkFlags)],
      linkerSettings: [
        .linkedLibrary("rte_eal"), .linkedLibrary("rte_ethdev"), .linkedLibrary("rte_mbuf"),
        .linkedLibrary("rte_mempool"), .linkedLibrary("rte_ring"),
      ]),

    // The engine's side, lowest first.
    .target(name: "MachnetWire", swiftSettings: strict),
    .target(name: "MachnetChannel", dependencies: ["CMachnetABI"], swiftSettings: strict),
    .target(name: "MachnetMemory", dependencies: ["CLinux"], swiftSettings: strict),
    .target(
      name: "MachnetTransport", dependencies: ["MachnetMemory", "MachnetWire"],
      // Judged in long simulated runs: optimised in debug builds, too.
      swiftSettings: hotOptimized),
    .target(
      name: "MachnetEngine",
      dependencies: ["CMachnetABI", "CLinux", "MachnetChannel", "MachnetMemory", "MachnetTransport", "MachnetWire"],
      swiftSettings: hot),
    .target(
      name: "MachnetDPDK", dependencies: ["CDPDK", "CNuma", "MachnetEngine"],
      swiftSettings: dpdk),
    // A network to judge the engine by. Its runs are long: it is optimised in debug builds, too.
    .target(
      name: "MachnetSimulation", dependencies: ["MachnetEngine", "MachnetMemory", "MachnetTransport", "MachnetWire"],
      swiftSettings: optimized),
    .executableTarget(
      name: "machnet-simulate",
      dependencies: [
        "EngineBench", "MachnetSimulation", .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .target(
      name: "MachnetControl",
      dependencies: [
        "CMachnetABI", "CLinux", "MachnetChannel", "MachnetEngine", "Yams",
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: strict),
    .target(
      name: "MachnetMetrics",
      dependencies: [
        "MachnetControl", .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOHTTP1", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
      ], swiftSettings: strict),
    .target(name: "MachnetInspect", dependencies: ["CElf", "CLinux"], swiftSettings: strict),
    .executableTarget(
      name: "machnetd",
      dependencies: [
        "CLinux", "CMachnetABI", "MachnetControl", "MachnetDPDK", "MachnetEngine", "MachnetMetrics", "MachnetTransport",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: dpdk),
    .executableTarget(
      name: "machnet-fabric",
      dependencies: [
        "CLinux", "MachnetControl", "MachnetDPDK", "MachnetEngine", "MachnetSimulation", "MachnetWire", "Yams",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: dpdk),
    .executableTarget(
      name: "machnet",
      dependencies: [
        "CMachnetABI", "CLinux", "MachnetControl", "MachnetInspect",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: strict),

    // The shim's side: the same channel code, compiled a second time for a process without a Swift runtime.
    .target(name: "ShimChannel", dependencies: ["CMachnetABI"], path: "Shim/Channel", swiftSettings: embedded),
    .target(
      name: "CTrampoline", dependencies: ["CMachnetABI"], path: "Shim/Trampoline",
      cSettings: trampoline),
    .target(
      name: "MachnetPreload", dependencies: ["CMachnetABI", "CTrampoline", "ShimChannel"], path: "Shim/Preload",
      exclude: ["exports.map"],
      swiftSettings: embedded,
      linkerSettings: [
        .unsafeFlags([
          "-enable-experimental-feature", "Embedded", "-use-ld=lld",
          "-Xlinker", "--as-needed", "-Xlinker", "--gc-sections", "-Xlinker", "--icf=all",
          "-Xlinker", "-z", "-Xlinker", "nodelete", "-Xlinker", "-z", "-Xlinker", "now", "-Xlinker", "-Bsymbolic-functions",
          "-Xlinker", "--version-script=\(Context.packageDirectory)/Shim/Preload/exports.map",
        ]),
        // (What ThreadSanitizer reports of a debug build is to be found in the source.)
        .unsafeFlags(["-Xlinker", "-s"], .when(configuration: .release)),
      ]),

    // The application's and the daemon's side of an engine, for tests; optimised as the network is.
    .target(
      name: "EngineBench",
      dependencies: ["CLinux", "CMachnetABI", "MachnetChannel", "MachnetEngine", "MachnetSimulation", "MachnetTransport"],
      path: "Tests/EngineBench", swiftSettings: optimized),
    .testTarget(name: "ChannelTests", dependencies: ["CMachnetABI", "MachnetChannel"], swiftSettings: tests),
    .testTarget(
      name: "ControlTests",
      dependencies: [
        "CMachnetABI", "CLinux", "MachnetChannel", "MachnetControl", "MachnetEngine",
        .product(name: "Logging", package: "swift-log"),
      ], swiftSettings: strict),
    .testTarget(name: "InspectTests", dependencies: ["CElf", "MachnetInspect"], swiftSettings: strict),
    .testTarget(name: "WireTests", dependencies: ["MachnetWire"], swiftSettings: strict),
    .testTarget(
      name: "DPDKTests", dependencies: ["MachnetDPDK", "MachnetEngine"],
      swiftSettings: dpdk),
    .testTarget(
      name: "TransportTests", dependencies: ["MachnetSimulation", "MachnetTransport", "MachnetWire"],
      swiftSettings: strict),
    .testTarget(
      name: "SimulationTests",
      dependencies: ["CMachnetABI", "EngineBench", "MachnetEngine", "MachnetSimulation", "MachnetTransport", "MachnetWire"],
      swiftSettings: strict),
    // Real programs, run as a user runs them; needs the built products, not the modules.
    .testTarget(name: "ProgramTests", swiftSettings: strict),
    .testTarget(
      name: "EngineTests",
      dependencies: ["CMachnetABI", "CLinux", "EngineBench", "MachnetChannel", "MachnetEngine", "MachnetWire"],
      swiftSettings: tests),
  ],
  swiftLanguageModes: [.v6]
)

// libFuzzer brings its own `main`, so that this target exists only where Scripts/fuzz builds with it.
if Context.environment["MACHNET_FUZZ"] != nil {
  package.targets.append(
    .executableTarget(
      name: "fuzz",
      dependencies: [
        "CLinux", "CMachnetABI", "EngineBench", "MachnetChannel", "MachnetControl", "MachnetEngine", "MachnetMemory",
        "MachnetSimulation", "MachnetTransport", "MachnetWire", .product(name: "Logging", package: "swift-log"),
      ], path: "Tests/Fuzz",
      exclude: ["corpus.py"],
      swiftSettings: optimized + [.unsafeFlags(["-parse-as-library"])]))
}
