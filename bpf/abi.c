// SPDX-License-Identifier: GPL-2.0-only
/*
 * One variable of each type in the headers that both sides share, so that their
 * BTF is complete: a program's own object describes only the types that its maps
 * and functions name. scripts/gen-layout compiles and reads this; nothing loads it.
 */
#include "docker_dns/abi.h"
#include "firewall/abi.h"
#include "guard/abi.h"
#include "steer/abi.h"

enum zfw_limit limit;
enum zfw_table table;
enum zfw_action action;
enum zfw_size_class size_class;
enum zfw_verdict verdict;
enum zfw_reason reason;
enum zfw_setting setting;
enum zfw_link_flag link_flag;
enum zfw_rule_flag rule_flag;
enum zfw_flow_flag flow_flag;
enum zfw_flow_stage flow_stage;
enum zfw_flow_table flow_table;
enum zfw_track track;
enum zfw_route_owner route_owner;

struct zfw_prefix_key prefix_key;
struct zfw_port_rule port_rule;
struct zfw_prefix prefix;
struct zfw_interval interval;
struct zfw_ports_medium ports_medium;
struct zfw_ports_large ports_large;
struct zfw_length_pair length_pair;
struct zfw_length_list length_list;
struct zfw_lengths lengths;
struct zfw_length_key length_key;
struct zfw_interface interface;
struct zfw_name name;
struct zfw_interface_name interface_name;
struct zfw_interface_set interface_set;
struct zfw_address address;
struct zfw_rule_record rule_record;
struct zfw_counter counter;
struct zfw_route_key route_key;
struct zfw_route route;
struct zfw_fragment_key fragment_key;
struct zfw_fragment fragment;
struct zfw_flow_key flow_key;
struct zfw_flow flow;
struct zfw_flow_limits flow_limits;
struct zfw_state state;
struct zfw_decision decision;

enum guard_limit guard_limit;
enum guard_hook guard_hook;
enum guard_verdict guard_verdict;
enum guard_reason guard_reason;
enum guard_flag guard_flag;
enum guard_otherwise guard_otherwise;

struct guard_config guard_config;
struct guard_keeper guard_keeper;
struct guard_prefix_key guard_prefix_key;
struct guard_prefix guard_prefix;
struct guard_learnt_key guard_learnt_key;
struct guard_proxy guard_proxy;
struct guard_server guard_server;
struct guard_socket guard_socket;
struct guard_asker_key guard_asker_key;
struct guard_asker guard_asker;
struct guard_event guard_event;

enum docker_dns_limit docker_dns_limit;
enum docker_dns_outcome docker_dns_outcome;

struct docker_dns_config docker_dns_config;
struct docker_dns_daemon docker_dns_daemon;
struct docker_dns_query_key docker_dns_query_key;
struct docker_dns_query docker_dns_query;
struct docker_dns_answer_key docker_dns_answer_key;
struct docker_dns_answer docker_dns_answer;
struct docker_dns_fragment_key docker_dns_fragment_key;
struct docker_dns_fragment docker_dns_fragment;
struct docker_dns_domain_key docker_dns_domain_key;
struct docker_dns_counter docker_dns_counter;
struct docker_dns_event docker_dns_event;

enum steer_limit steer_limit;
enum steer_class steer_class;
enum steer_config_flag steer_config_flag;
enum steer_mapping_flag steer_mapping_flag;
enum steer_trouble steer_trouble;
enum steer_kind steer_kind;

struct steer_config steer_config;
struct steer_mapping_key steer_mapping_key;
struct steer_mapping steer_mapping;
struct steer_segments steer_segments;
struct steer_address steer_address;
struct steer_target steer_target;
struct steer_socket_key steer_socket_key;
struct steer_listener steer_listener;
struct steer_flow_key steer_flow_key;
struct steer_flow steer_flow;
struct steer_slot steer_slot;
struct steer_counter steer_counter;
struct steer_event steer_event;
