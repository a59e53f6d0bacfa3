/// One polling thread's work: packets of its ports on one side, the rings of applications on the other.
///
/// Made and run on the engine's own thread; everything else talks to it through its `EngineControl`.
public struct Engine<IO: PacketIO & ~Copyable>: ~Copyable {
  private let control: EngineControl

  public init(control: EngineControl) { self.control = control }

  /// Gives the engine the queue of the next interface of its options.
  public mutating func add(port: consuming IO) {}

  /// Works until `EngineControl.stop`.
  public mutating func run() {}
}
