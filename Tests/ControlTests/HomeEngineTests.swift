import Testing

@testable import MachnetControl

@Suite struct HomeEngineTests {
  @Test(arguments: [
    // One interface, fewer queues than engines: only those that have one.
    ([[1], [], [1]], 1, [0, 2]),
    // Two interfaces on two engines: by where the datagrams leave.
    ([[1], [2]], 2, [1]),
    // Not known where: those that reach most.
    ([[1], [1, 2], [2, 1]], nil, [1, 2]),
    // No interface at all: any.
    ([[], []], nil, [0, 1]),
    // An address that no engine serves (loopback): any that reaches most.
    ([[1], []], 9, [0]),
  ] as [([[UInt32]], UInt32?, [Int])])
  func anEngineThatCanSendIsChosen(serving: [[UInt32]], interface: UInt32?, expected: [Int]) {
    #expect(HomeEngine.candidates(serving: serving, interface: interface) == expected)
  }
}
